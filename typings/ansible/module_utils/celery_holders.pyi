from celery_holders import *
