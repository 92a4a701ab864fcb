from celery_up import *
