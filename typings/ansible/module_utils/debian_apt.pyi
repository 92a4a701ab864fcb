from debian_apt import *
