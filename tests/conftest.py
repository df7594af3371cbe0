"""What holds for all tests."""

import os

from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", PATIENT)
# For a night: HYPOTHESIS_PROFILE=deep scripts/test. What a test asks for is a share of the profile's examples.
settings.register_profile("deep", PATIENT, max_examples=10 * PATIENT.max_examples)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
