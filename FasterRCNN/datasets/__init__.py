"""Annotation formats, read into ImageRecords."""
