from celery_redis_certificates import *
