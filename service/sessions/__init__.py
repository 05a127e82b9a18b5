"""Sessions: states that are kept between requests, each written by one request at a time, here or by any replica."""
