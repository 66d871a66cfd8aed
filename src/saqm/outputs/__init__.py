"""Scores and maps become files here: tables, pictures, reports."""
