"""Profiles, tables and figures for people; they never change a model."""

from sgdap.report.inspection import Inspection, inspect
from sgdap.report.profile import LayerProfile, Profile, profile

__all__ = ["Inspection", "LayerProfile", "Profile", "inspect", "profile"]
