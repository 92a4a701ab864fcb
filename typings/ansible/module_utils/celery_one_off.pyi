from celery_one_off import *
