"""The Postgres schema `metering`, one module for each thing done to it."""
