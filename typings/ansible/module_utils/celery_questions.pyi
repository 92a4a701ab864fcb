from celery_questions import *
