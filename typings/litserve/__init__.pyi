# The part of litserve 0.2.19 that Sixfold stands on; tests/core/serving/test_litserve_seams.py holds the package to it.
from litserve.api import LitAPI as LitAPI
from litserve.server import LitServer as LitServer
