"""Reads and writes files so that none is ever half written: whole files, appended lines, tables, stages."""
