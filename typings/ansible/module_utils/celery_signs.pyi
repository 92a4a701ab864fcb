from celery_signs import *
