from celery_lists import *
