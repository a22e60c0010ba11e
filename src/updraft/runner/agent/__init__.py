"""The agent: carries grants to the keeper, and reports and output to the server.

It holds no state of its own: the keeper's report and the spool files are the truth, so it may be
killed or upgraded at any moment.
"""
