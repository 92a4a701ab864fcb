from podman_images import *
