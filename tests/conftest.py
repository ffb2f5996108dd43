"""What holds for all tests: drawing examples has no deadline, since a machine may be busy with something else."""

from hypothesis import HealthCheck, settings

settings.register_profile("mrp", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mrp")
