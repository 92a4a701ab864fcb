from celery_doctor_host import *
