from container_files import *
