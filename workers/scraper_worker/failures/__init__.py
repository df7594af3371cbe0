"""What an exception, an HTTP answer or a page means: the failure that is reported."""
