from celery_journal import *
