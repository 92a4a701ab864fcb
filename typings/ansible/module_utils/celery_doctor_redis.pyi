from celery_doctor_redis import *
