//! Without facts, the server keeps no log for us.
