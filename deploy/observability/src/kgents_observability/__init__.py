"""Dashboards and objectives as code, and what rules and services say of each other; it serves nothing."""
