// Runs a script of steps with aws-sdk-go-v2; python/steps.py says what it reads and prints.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

type step struct {
	Op     string `json:"op"`
	Key    string `json:"key"`
	Prefix string `json:"prefix"`
	Page   int32  `json:"page"`
	First  int64  `json:"first"`
	Last   int64  `json:"last"`
}

type job struct {
	Name      string `json:"name"`
	Endpoint  string `json:"endpoint"`
	Region    string `json:"region"`
	AccessKey string `json:"accessKey"`
	SecretKey string `json:"secretKey"`
	Token     string `json:"token"`
	Bucket    string `json:"bucket"`
	Style     string `json:"style"`
	Steps     []step `json:"steps"`
}

type outcome map[string]any

func main() {
	var script struct {
		Jobs   []job  `json:"jobs"`
		Reader string `json:"reader"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&script); err != nil {
		panic(err)
	}
	done := map[string][]outcome{}
	for _, each := range script.Jobs {
		client := connect(each.Endpoint, each.Region, each.AccessKey, each.SecretKey, each.Token, each.Style)
		for _, one := range each.Steps {
			found, err := run(client, script.Reader, each.Bucket, one)
			if err != nil {
				found = outcome{"error": err.Error()}
			}
			done[each.Name] = append(done[each.Name], found)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"jobs": done}); err != nil {
		panic(err)
	}
}

func connect(endpoint, region, accessKey, secretKey, token, style string) *s3.Client {
	ctx := context.Background()
	// paste from here
	keys := credentials.NewStaticCredentialsProvider(accessKey, secretKey, token)
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(region), config.WithCredentialsProvider(keys))
	if err != nil {
		panic(err)
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.BaseEndpoint = aws.String(endpoint)
		o.UsePathStyle = style == "path"
	})
	// paste to here
	return client
}

func run(client *s3.Client, reader, bucket string, asked step) (outcome, error) {
	ctx := context.Background()
	switch asked.Op {
	case "open":
		found, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &asked.Key})
		if err != nil {
			return nil, err
		}
		return outcome{"length": found.ContentLength}, nil
	case "list":
		return list(ctx, client, bucket, asked)
	case "range":
		part := fmt.Sprintf("bytes=%d-%d", asked.First, asked.Last)
		found, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &asked.Key, Range: &part})
		if err != nil {
			return nil, err
		}
		return told(found.Body)
	case "read", "parallel":
		switch reader {
		case "manager":
			return managed(ctx, client, bucket, asked.Key)
		case "transfermanager":
			return transferred(ctx, client, bucket, asked.Key)
		default:
			return got(ctx, client, bucket, asked.Key)
		}
	}
	return nil, fmt.Errorf("no operation %q", asked.Op)
}

func list(ctx context.Context, client *s3.Client, bucket string, asked step) (outcome, error) {
	keys := []string{}
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{
		Bucket: &bucket, Prefix: &asked.Prefix, MaxKeys: &asked.Page,
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, each := range page.Contents {
			keys = append(keys, *each.Key)
		}
	}
	return outcome{"keys": keys}, nil
}

func got(ctx context.Context, client *s3.Client, bucket, key string) (outcome, error) {
	// GetObject: paste from here
	object, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	// GetObject: paste to here
	if err != nil {
		return nil, err
	}
	return told(object.Body)
}

func managed(ctx context.Context, client *s3.Client, bucket, key string) (outcome, error) {
	// manager: paste from here
	buffer := manager.NewWriteAtBuffer(nil)
	_, err := manager.NewDownloader(client).Download(ctx, buffer, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	// manager: paste to here
	if err != nil {
		return nil, err
	}
	return told(io.NopCloser(bytes.NewReader(buffer.Bytes())))
}

func transferred(ctx context.Context, client *s3.Client, bucket, key string) (outcome, error) {
	// transfermanager: paste from here
	object, err := transfermanager.New(client).GetObject(ctx, &transfermanager.GetObjectInput{Bucket: &bucket, Key: &key})
	// transfermanager: paste to here
	if err != nil {
		return nil, err
	}
	return told(io.NopCloser(object.Body))
}

func told(body io.ReadCloser) (outcome, error) {
	defer body.Close()
	digest := sha256.New()
	length, err := io.Copy(digest, body)
	if err != nil {
		return nil, err
	}
	return outcome{"length": length, "sha256": hex.EncodeToString(digest.Sum(nil))}, nil
}
