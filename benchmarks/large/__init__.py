"""Measurements that take many minutes or gigabytes."""
