"""One row for each algorithm: what it is called, who wrote it, how it is built."""

from optlab.catalog._lookup import get as get
from optlab.catalog._lookup import markdown_table as markdown_table
from optlab.catalog._lookup import rows as rows
from optlab.catalog._row import Paper as Paper
from optlab.catalog._row import Row as Row
