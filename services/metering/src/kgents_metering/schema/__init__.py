"""Migrations of the schema `metering`, in name order."""
