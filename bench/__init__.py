"""Measurements that users repeat on their own machine. Each script ends in one line with one JSON object."""
