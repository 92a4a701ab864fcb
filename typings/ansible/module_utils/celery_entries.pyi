from celery_entries import *
