from celery_metrics import *
