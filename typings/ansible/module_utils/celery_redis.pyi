from celery_redis import *
