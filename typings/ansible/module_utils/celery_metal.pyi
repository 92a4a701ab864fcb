from celery_metal import *
