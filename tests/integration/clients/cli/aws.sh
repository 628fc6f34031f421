# setup: paste from here
export AWS_ENDPOINT_URL="$endpoint" AWS_REGION="$region"
export AWS_ACCESS_KEY_ID="$access_key" AWS_SECRET_ACCESS_KEY="$secret_key"
# setup: paste to here
# read: paste from here
aws s3 cp "s3://$bucket/$key" "$file"
# read: paste to here
# range: paste from here
aws s3api get-object --bucket "$bucket" --key "$key" --range "bytes=$first-$last" "$file"
# range: paste to here
# folder: paste from here
aws s3 cp --recursive "s3://$bucket/$prefix" "$folder"
# folder: paste to here
# list: paste from here
aws s3 ls --recursive --page-size "$page" "s3://$bucket/$prefix"
# list: paste to here
