# setup: paste from here
export MC_HOST_lake="${endpoint%%://*}://$access_key:$secret_key@${endpoint#*://}"
# setup: paste to here
# read: paste from here
mc cat "lake/$bucket/$key" > "$file"
# read: paste to here
# list: paste from here
mc find "lake/$bucket/$prefix"
# list: paste to here
