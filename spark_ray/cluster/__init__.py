"""Clusters that others run: files that make one, and jobs that are sent to one."""
