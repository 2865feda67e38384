"""Settings of all tests."""

import signal

from hypothesis import HealthCheck, settings

# A shell has what runs in its background ignore SIGINT, and what the tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine's other load than about the code: neither a deadline, nor a
# verdict on what is slow to draw.
settings.register_profile(
    "random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
# The same examples in every run, so that a run says something of the change that it is made for.
# `--hypothesis-profile=random` looks for others.
settings.register_profile("sockscope", settings.get_profile("random"), derandomize=True)
settings.load_profile("sockscope")
