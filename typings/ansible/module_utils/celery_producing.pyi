from celery_producing import *
