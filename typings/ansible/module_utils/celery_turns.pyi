from celery_turns import *
