# setup: paste from here
export RCLONE_CONFIG_LAKE_TYPE=s3 RCLONE_CONFIG_LAKE_PROVIDER=Other
export RCLONE_CONFIG_LAKE_ENDPOINT="$endpoint" RCLONE_CONFIG_LAKE_REGION="$region"
export RCLONE_CONFIG_LAKE_ACCESS_KEY_ID="$access_key" RCLONE_CONFIG_LAKE_SECRET_ACCESS_KEY="$secret_key"
# setup: paste to here
# read: paste from here
rclone copyto "lake:$bucket/$key" "$file"
# read: paste to here
# range: paste from here
rclone cat --offset "$first" --count "$count" "lake:$bucket/$key" > "$file"
# range: paste to here
# list: paste from here
rclone lsf --recursive --files-only --s3-list-chunk "$page" "lake:$bucket/$prefix"
# list: paste to here
