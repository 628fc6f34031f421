# setup: paste from here
export S3_ENDPOINT_URL="$endpoint" AWS_REGION="$region"
export AWS_ACCESS_KEY_ID="$access_key" AWS_SECRET_ACCESS_KEY="$secret_key"
# setup: paste to here
# read: paste from here
s5cmd cp --raw "s3://$bucket/$key" "$file"
# read: paste to here
# list: paste from here
s5cmd --json ls "s3://$bucket/$prefix*"
# list: paste to here
