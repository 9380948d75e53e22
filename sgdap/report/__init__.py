"""What people look at: profiles, tables and figures."""

from sgdap.report.profile import LayerProfile, Profile, profile

__all__ = ["LayerProfile", "Profile", "profile"]
