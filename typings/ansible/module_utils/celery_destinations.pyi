from celery_destinations import *
