"""What people look at: profiles, tables and figures."""

from sgdap.report.inspection import Inspection, inspect
from sgdap.report.profile import LayerProfile, Profile, profile

__all__ = ["Inspection", "LayerProfile", "Profile", "inspect", "profile"]
