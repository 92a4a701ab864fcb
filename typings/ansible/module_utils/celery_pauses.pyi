from celery_pauses import *
