"""Reading and writing files so that nothing is half written: whole files, appended lines, tables, stages."""
