"""``python -m celery_metal_runtime``; see the package for what the environment means."""

from celery_metal_runtime.entry import main

if __name__ == "__main__":
    main()
