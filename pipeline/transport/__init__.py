"""The only code that knows ZeroMQ: snapshots on their way in, questions and answers, and the poll over both.

Contexts are made by the objects here when they are made: after the fork, and never inside a foreign namespace,
where libzmq's threads would stay.
"""
