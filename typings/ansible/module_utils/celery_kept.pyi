from celery_kept import *
