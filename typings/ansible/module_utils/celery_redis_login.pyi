from celery_redis_login import *
