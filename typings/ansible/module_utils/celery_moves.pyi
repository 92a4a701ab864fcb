from celery_moves import *
