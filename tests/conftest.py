"""Settings of all tests."""

from hypothesis import settings

# No deadline: how long one example takes says more about the machine's other load than about the code.
settings.register_profile("sockscope", deadline=None)
settings.load_profile("sockscope")
