from celery_redis_backup import *
